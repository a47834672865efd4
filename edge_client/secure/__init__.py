# SPDX-License-Identifier: Apache-2.0
"""A node's part in secure aggregation: what it says and checks, and how its update is masked. No NumPy."""
