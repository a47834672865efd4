# SPDX-License-Identifier: Apache-2.0
"""Client halves of the methods that learn coefficients of directions which every machine makes from a seed."""
