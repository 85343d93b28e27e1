// Package lab holds throwaway hosts to install on: Debian with systemd and
// sshd, one container each. "up" makes them and writes an inventory, "down"
// removes them. The package itself is the test that installs a cluster on such
// hosts and breaks it; "make test-lab" runs it.
package lab
