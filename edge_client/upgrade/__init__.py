# SPDX-License-Identifier: Apache-2.0
"""Another version of the agent beside the one that runs, and back if the new one does not report."""
