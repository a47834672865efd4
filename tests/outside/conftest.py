# SPDX-License-Identifier: Apache-2.0
"""The package is installed by the tests, and seen by the processes that they start; not by this one."""

collect_ignore = ["outside_package"]
