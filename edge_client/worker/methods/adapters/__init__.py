# SPDX-License-Identifier: Apache-2.0
"""Client halves of the methods whose small tensors stand beside frozen layers."""
