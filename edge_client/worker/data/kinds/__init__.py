# SPDX-License-Identifier: Apache-2.0
"""The tasks at work: one file each, imported by the names that `fedcore.config.tasks` has of them."""
