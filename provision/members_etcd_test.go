package provision

import "testing"

// The members of etcd's own server are added, rolled, replaced and removed in
// the same way. It joins more slowly, so this needs -etcd-members 3.
func TestMembersOfEtcd(t *testing.T) {
	if *etcdMembers < 3 {
		t.Skip("takes a minute; say -etcd-members 3")
	}
	l := newLab(t, 3)
	all := l.hosts
	server := "server: {binary: " + buildEtcd(t) + "}\n"
	l.loadHosts(server, all[0])
	l.mustApply()
	w := l.startCounter(0)
	for _, n := range []int{3, 2, 3} {
		if n == 3 && len(l.cluster.Hosts) == 2 { // who was removed comes back as a new member
			l.loadHosts(server, all...)
			l.mustReplace("controller-2")
			continue
		}
		l.loadHosts(server, all[:n]...)
		l.mustApply()
		l.mustBeDone()
	}
	l.loadHosts("server: {binary: "+l.cluster.Hosts[0].Server.Binary+", flags: {heartbeat-interval: \"150\"}}\n", all...)
	l.mustApply()
	l.mustBeDone()
	w.mustHaveAll(2)
}
