# SPDX-License-Identifier: Apache-2.0
"""Many runs on one fleet: a queue of runs, a process for each, the nodes that take part, and who may ask for what."""
