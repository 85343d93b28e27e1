package replica

import (
	"testing"

	"go.uber.org/goleak"
)

// A member that was closed leaves nothing running in the process, whatever it
// was doing.
func TestClosedMembersLeaveNothingRunning(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Run("cluster", func(t *testing.T) {
		c := startCluster(t, 3)
		leader, behind := c.leader(), c.follower()
		c.put(behind, "k", "v")
		c.stop(behind)
		c.fill(leader, 5, "v")
		c.cut()
		c.start(behind) // is sent a snapshot
		c.awaitReady(behind)
		for i := range c.members {
			c.stop(i)
		}
	})
	t.Run("refused start", func(t *testing.T) {
		c := startCluster(t, 1)
		c.stop(0)
		remove(t, c.members[0].config.Dir, "kv")
		if err := c.tryStart(0); err == nil {
			t.Error("started without its store")
		}
	})
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
}
