# SPDX-License-Identifier: Apache-2.0
"""The paper's experiment (arXiv 2602.03019, section 5) with every method of the house: same data, same clients, same
wire."""
