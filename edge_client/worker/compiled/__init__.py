# SPDX-License-Identifier: Apache-2.0
"""Models of Llama's shape that answer through code compiled on this machine: NumPy alone, no torch."""
