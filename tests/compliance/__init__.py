"""What every buffer and every server does, whatever they are made of.

`buffers` has the tests of a buffer's API: they take any kind of buffer that `kinds.BUFFERS` names. `server` has the tests of the wire: they take the
address of any server, and speak to it with the generated code alone. A new kind of either is one entry in `kinds`, and no test changes.

$TDREPLAY_COMPLIANCE_ADDRESS puts a server under the suite that runs already. Tests that need more than an address are skipped then.
"""
