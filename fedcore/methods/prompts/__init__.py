# SPDX-License-Identifier: Apache-2.0
"""Server halves of the methods that learn vectors before texts, or before keys and values."""
