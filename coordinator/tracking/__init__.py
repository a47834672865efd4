# SPDX-License-Identifier: Apache-2.0
"""A run's numbers brought to programs that draw and compare them."""
