//go:build !plant_verifyleader && !plant_unconfirmed_reads

package replica

import "context"

// confirmedIndex is replaced only by the build tags that show that the fault
// tests notice.
func confirmedIndex(ctx context.Context, r *reader) (uint64, error) { return r.quorumIndex(ctx) }
