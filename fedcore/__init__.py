# SPDX-License-Identifier: Apache-2.0
"""The ground floor: method maths, wire and transports, shared by client and coordinator. No torch here."""
