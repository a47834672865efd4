# SPDX-License-Identifier: Apache-2.0
"""Server halves of the methods that send coefficients of directions which every machine makes from a seed."""
