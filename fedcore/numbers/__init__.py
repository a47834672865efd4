# SPDX-License-Identifier: Apache-2.0
"""Matrices as they travel and are summed: entries, exact sums, the codecs of records."""
