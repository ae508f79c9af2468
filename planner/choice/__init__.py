"""Choosing among the planner's candidates, learning from what comes of it. Needs no cluster.

policy.py           what a choice is made on, what comes back, and the interface of all policies
"""
