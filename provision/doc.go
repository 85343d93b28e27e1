// Package provision is what muster does to a cluster: Apply, Status, Reset.
// Each operation is one ordered list of steps.
package provision
