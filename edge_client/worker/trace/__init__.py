# SPDX-License-Identifier: Apache-2.0
"""What training will keep in memory, found on tensors without memory."""
