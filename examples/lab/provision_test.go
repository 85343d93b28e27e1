//go:build lab

package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestProvisionSpeed times muster apply and an Ansible playbook that does the
// same, each on bare hosts and again with nothing to do. The ratios are
// reported, not enforced.
func TestProvisionSpeed(t *testing.T) {
	t.Setenv("MUSTER_LAB_PACKAGES", "python3") // what Ansible needs on a host
	type times struct{ first, again []time.Duration }
	var muster, ansible times
	for range *rounds {
		t.Run("muster", func(t *testing.T) {
			h := up(t, 3)
			apply := func() {
				if _, err := h.muster(5*time.Minute, "apply", "--yes"); err != nil {
					t.Fatal(err)
				}
			}
			muster.first = append(muster.first, timed(apply))
			muster.again = append(muster.again, timed(apply))
		})
		t.Run("ansible", func(t *testing.T) {
			h := up(t, 3)
			play := h.playbook()
			ansible.first = append(ansible.first, timed(play))
			ansible.again = append(ansible.again, timed(play))
		})
	}
	if t.Failed() {
		return
	}
	t.Logf("%-32s %10s %10s %8s", "", "ansible", "muster", "ratio")
	for _, row := range []struct {
		name            string
		ansible, muster []time.Duration
	}{{"bare hosts to a healthy cluster", ansible.first, muster.first}, {"again, with nothing to do", ansible.again, muster.again}} {
		a, m := median(row.ansible), median(row.muster)
		t.Logf("%-32s %9.2fs %9.2fs %8.1f", row.name, a.Seconds(), m.Seconds(), a.Seconds()/m.Seconds())
	}
}

func timed(do func()) time.Duration {
	began := time.Now()
	do()
	return time.Since(began)
}

func median(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)/2]
}

// playbook returns what runs the playbook on the lab's hosts.
func (h *hosts) playbook() func() {
	h.t.Helper()
	config := filepath.Join(h.state, "ssh_config")
	var text strings.Builder
	text.WriteString("[controllers]\n")
	for i, name := range h.names {
		fmt.Fprintf(&text, "%s entry=%s=%s client=%s peer=%s=https://%s:2380\n", name, name, h.address(i), h.endpoint(i), name, h.address(i))
	}
	inventory := filepath.Join(h.state, "ansible.ini")
	if err := os.WriteFile(inventory, []byte(text.String()), 0o600); err != nil {
		h.t.Fatal(err)
	}
	h.t.Setenv("ANSIBLE_CONFIG", filepath.Join("ansible", "ansible.cfg"))
	return func() {
		h.t.Helper()
		h.must(10*time.Minute, "ansible-playbook", "-i", inventory,
			"-e", "programs="+h.programs, "-e", "pki="+filepath.Join(h.state, "ansible-pki"),
			"--ssh-common-args", "-F "+config, filepath.Join("ansible", "site.yml"))
	}
}
