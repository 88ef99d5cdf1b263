"""What users would write instead, each as good as its kind gets."""
