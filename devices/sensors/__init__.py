# SPDX-License-Identifier: Apache-2.0
"""What the system tells: one file for each kind of fact, whatever device it is read on."""
