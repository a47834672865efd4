# SPDX-License-Identifier: Apache-2.0
"""Answers on a device with a larger model behind it: `fedkrso client ask`."""
