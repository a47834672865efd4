# SPDX-License-Identifier: Apache-2.0
"""The model: 8-bit layers with trained subspaces, read layer by layer, and parts that keep less for backward."""
