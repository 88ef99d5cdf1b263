"""The room of continuous-time processes; there are none yet."""
