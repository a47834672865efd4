# SPDX-License-Identifier: Apache-2.0
"""Answers over HTTP from what a node has learned: `fedkrso client serve`. Light like the agent: no torch, no NumPy."""
