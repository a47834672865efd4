# SPDX-License-Identifier: Apache-2.0
"""The large model behind devices that answer by themselves what they are sure of: `fedkrso coordinator oracle`."""
