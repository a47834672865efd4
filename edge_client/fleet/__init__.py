# SPDX-License-Identifier: Apache-2.0
"""A node of a fleet: it waits for runs that match its data and its owner's rules, and takes part in one at a time."""
