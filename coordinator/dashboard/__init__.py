# SPDX-License-Identifier: Apache-2.0
"""The dashboard: a page, its interface, metrics and an operator's commands, served beside the coordinator's loop."""
