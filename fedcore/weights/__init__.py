# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's tensors: read, described, quantised, kept as master copies."""
