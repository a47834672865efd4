# SPDX-License-Identifier: Apache-2.0
"""When the owner lets the node work: policy, and the sensors that it is judged by."""
