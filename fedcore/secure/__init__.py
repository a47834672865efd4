# SPDX-License-Identifier: Apache-2.0
"""Secure aggregation: shares of secrets, keys, masks, and the graph of who masks with whom. Agents import it."""
