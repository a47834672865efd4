# SPDX-License-Identifier: Apache-2.0
"""Client halves of the methods that learn vectors before texts, or before keys and values."""
