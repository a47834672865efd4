# SPDX-License-Identifier: Apache-2.0
"""What a job may have beside its method (buffered rounds, noise, masks): what does not go together is refused by name
before a run begins."""
