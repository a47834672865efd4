# SPDX-License-Identifier: Apache-2.0
"""The worker as a process: started under the budget, watched; and how this machine computes best."""
