package observed

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Restoring is what a host remembers of a restore until the restored cluster
// is verified.
type Restoring struct {
	// Snapshot is the checksum of the snapshot, in hexadecimal. Saved is that of
	// the one it was made of by bumping its revision, Bump by how much.
	Snapshot string `json:"snapshot"`
	Saved    string `json:"saved,omitempty"`
	Bump     int64  `json:"bump,omitempty"`
	// ID gives the restored cluster an ID of its own; the same on every host.
	ID string `json:"id,omitempty"`
	// Begun is when the first run began it.
	Begun time.Time `json:"begun"`
	// Aside is where the data that was there before is kept; empty when there
	// was none.
	Aside string `json:"aside,omitempty"`
	// Moved says that it is there already: what the data directory holds now
	// comes from the snapshot.
	Moved bool `json:"moved,omitempty"`
	// Adopts says that the snapshot is of an etcd that is taken over.
	Adopts bool `json:"adopts,omitempty"`
}

// Of says whether the host is being restored from this snapshot.
func (r Restoring) Of(snapshot string) bool { return r.Snapshot == snapshot && snapshot != "" }

func parseRestoring(line string) (Restoring, error) {
	var r Restoring
	if strings.TrimSpace(line) == "" {
		return r, nil
	}
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		return r, fmt.Errorf("the host's restore.json is not muster's record of a restore: %w; move the file away if no restore is under way", err)
	}
	return r, nil
}
