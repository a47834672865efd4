# SPDX-License-Identifier: Apache-2.0
"""Examples: one idea each, run by the tests."""
