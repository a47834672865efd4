# SPDX-License-Identifier: Apache-2.0
"""Server halves of the LoRA family: a product of two thin factors beside each weight."""
