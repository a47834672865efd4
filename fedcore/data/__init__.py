# SPDX-License-Identifier: Apache-2.0
"""A whole data set: how its examples are dealt to nodes."""
