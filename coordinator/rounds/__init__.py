# SPDX-License-Identifier: Apache-2.0
"""The run as a state machine, and the rules it goes by: pure, without I/O and clock."""
