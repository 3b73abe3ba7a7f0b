"""Planners: what a user names after -pl."""

from nnunetv2_swipe.planners.swipe_planner import SwIPEPlanner

__all__ = ["SwIPEPlanner"]
