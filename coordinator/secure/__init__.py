# SPDX-License-Identifier: Apache-2.0
"""The coordinator's part in secure aggregation: the exchange with the nodes, and the sum without its masks."""
