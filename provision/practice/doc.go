// Package practice provides hosts to install on that need no machine: each
// one is an SSH server in this process with a root directory of its own, the
// POSIX shell and the small tools an installer calls, and a unit runner that
// starts what the installed unit files say as real child processes.
//
// What is real: SSH, SFTP, host keys, files (with real fsync), the shell's
// grammar, the server process, its sockets, its certificates. What is played:
// accounts and file owners (kept in a table, so that no root is needed),
// systemd, sudo, and the few facts of the machine that a Fault can change.
//
// Every tool is listed in the table in tools.go. A command that is not in it
// answers 127 with "practice host: NAME: not found", so that a gap is loud.
//
// A host listens only on loopback addresses. Its ports form a block of four,
// of which the first, the SSH port, is held for as long as the host lives;
// two processes that practise at the same time never share a block.
package practice
