# SPDX-License-Identifier: Apache-2.0
"""A node's own text: read, made into batches, measured."""
