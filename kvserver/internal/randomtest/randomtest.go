// Package randomtest is for tests that make random requests for as long as they
// are told to, and until all that they are about has happened: chance leaves out
// the rare in a short run.
package randomtest

// Patience is how many requests a test may make until all has happened.
const Patience = 50_000

// Lacks returns the first of musts that was never counted, or nothing.
func Lacks(counts map[string]int, musts []string) string {
	for _, must := range musts {
		if counts[must] == 0 {
			return must
		}
	}
	return ""
}
