# SPDX-License-Identifier: Apache-2.0
"""A method, a task, a metric, a payload codec and a device of somebody else."""
