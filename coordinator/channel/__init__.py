# SPDX-License-Identifier: Apache-2.0
"""The simulated radio channel of `[channel]`: antennas, a jammer, and how large the error is that they leave."""
