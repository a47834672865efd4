# SPDX-License-Identifier: Apache-2.0
"""Subspaces and directions that every machine makes from a seed, or takes from the run."""
