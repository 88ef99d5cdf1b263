"""The main job on real data: train on handwritten digits, sample new ones, judge them."""

from fastscore.apps.demo.run import run_demo

__all__ = ["run_demo"]
