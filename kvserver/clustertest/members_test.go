package clustertest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/status"
)

const changeTimeout = 10 * time.Second

// add adds a member, which is not started.
func (c *cluster) add(through *member, name string, learner bool) *member {
	c.t.Helper()
	m := newMember(c.t, name)
	var added *pb.MemberAddResponse
	c.change(through, "add "+name, func(ctx context.Context, client pb.ClusterClient) (err error) {
		added, err = client.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{m.peerURL}, IsLearner: learner})
		return err
	})
	var initial []string
	for _, each := range added.GetMembers() {
		name := each.GetName()
		if each.GetID() == added.GetMember().GetID() {
			name = m.name
		}
		if name == "" {
			c.t.Fatalf("%s answered a read and is not named on the list: %v", each.GetPeerURLs(), added.GetMembers())
		}
		initial = append(initial, name+"="+each.GetPeerURLs()[0])
	}
	m.joins = strings.Join(initial, ",")
	return m
}

// grow adds a member, starts it and waits until it answers.
func (c *cluster) grow(through *member, name string) *member {
	c.t.Helper()
	m := c.add(through, name, false)
	c.start(m)
	c.members = append(c.members, m)
	c.awaitRead(m)
	return m
}

// change tries again while too few members are connected, which they are a
// moment after a fault, or while a leader is lost before it has done anything.
func (c *cluster) change(through *member, what string, do func(ctx context.Context, client pb.ClusterClient) error) {
	c.t.Helper()
	client := pb.NewClusterClient(c.dialOnce(through))
	eventually(c.t, what+" through "+through.name, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), changeTimeout)
		defer cancel()
		err := do(ctx, client)
		for _, passing := range []error{rpctypes.ErrGRPCUnhealthy, rpctypes.ErrGRPCLearnerNotReady} {
			if status.Convert(err).Message() == rpctypes.ErrorDesc(passing) {
				return err
			}
		}
		if err != nil {
			c.t.Fatalf("%s through %s: %v", what, through.name, err)
		}
		return nil
	})
}

func (c *cluster) id(m *member) uint64 {
	c.t.Helper()
	for _, each := range c.list(c.members[0]) {
		if each.GetName() == m.name || slices.Contains(each.GetPeerURLs(), m.peerURL) {
			return each.GetID()
		}
	}
	c.t.Fatalf("%s is not on the list", m.name)
	return 0
}

func (c *cluster) list(m *member) []*pb.Member {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), changeTimeout)
	defer cancel()
	list, err := pb.NewClusterClient(c.dialOnce(m)).MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
	if err != nil {
		c.t.Fatalf("list the members through %s: %v", m.name, err)
	}
	return list.GetMembers()
}

// remove removes a member and waits until it has stopped by itself.
func (c *cluster) remove(through, m *member) {
	c.t.Helper()
	id := c.id(m)
	c.members = slices.DeleteFunc(c.members, func(each *member) bool { return each == m })
	c.gone = append(c.gone, m)
	c.change(through, "remove "+m.name, func(ctx context.Context, client pb.ClusterClient) error {
		_, err := client.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: id})
		return err
	})
	c.awaitRemoval(m)
}

func (c *cluster) awaitRemoval(m *member) {
	c.t.Helper()
	select {
	case <-m.exited:
	case <-time.After(30 * time.Second):
		c.t.Fatalf("%s was removed and goes on", m.name)
	}
	log, err := os.ReadFile(m.dir + ".log")
	if err != nil {
		c.t.Fatal(err)
	}
	if want := "error: the member has been permanently removed from the cluster"; m.process.ProcessState.ExitCode() != 1 || !strings.Contains(string(log), want) {
		c.t.Errorf("%s exited with %v, want 1 and %q in its log", m.name, m.process.ProcessState, want)
	}
}

func (c *cluster) moveLeader(to *member) {
	c.t.Helper()
	id := c.id(to)
	eventually(c.t, "the lead moves to "+to.name, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), changeTimeout)
		defer cancel()
		_, err := pb.NewMaintenanceClient(c.dialOnce(c.leader(nil))).MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: id})
		return err
	})
	if leader := c.leader(nil); leader != to {
		c.t.Errorf("%s leads, want %s", leader.name, to.name)
	}
}

// A cluster grows from one member to five and shrinks to three; a dead member
// is replaced by a learner that is promoted, the lead moves, and the first
// member goes. The clients lose nothing, and every member lists the same.
func TestMembersChangeUnderLoad(t *testing.T) {
	c := startClusterOf(t, 1, 300*time.Millisecond)
	first := c.members[0]
	l := startLoad(c, theSeed(t))
	for i := 1; i < 5; i++ {
		l.next(i)
		m := c.grow(c.members[i-1], fmt.Sprintf("m%d", i))
		if i == 2 {
			l.attach(m)
		}
	}
	stays := c.members[2]
	l.next(5)
	c.remove(first, c.members[4])
	c.moveLeader(c.members[3])
	l.next(6)
	c.remove(c.members[3], c.members[3]) // the leader, through itself

	l.next(7)
	dead := c.members[1]
	c.kill(dead)
	c.awaitWrite(first)
	id := c.id(dead)
	c.members = slices.Delete(c.members, 1, 2)
	c.change(stays, "remove "+dead.name, func(ctx context.Context, client pb.ClusterClient) error {
		_, err := client.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: id})
		return err
	})
	c.gone = append(c.gone, dead)
	c.start(dead) // it comes back, and is told
	c.awaitRemoval(dead)

	l.next(8)
	learner := c.add(stays, "m5", true)
	c.start(learner)
	c.learnerAnswers(learner)
	c.members = append(c.members, learner)
	id = c.id(learner)
	c.change(first, "promote "+learner.name, func(ctx context.Context, client pb.ClusterClient) error {
		_, err := client.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: id})
		return err
	})
	c.awaitRead(learner)
	l.attach(learner)
	l.next(9)
	c.moveLeader(learner)
	c.remove(stays, first)
	// As many as the others: no single one can be waited for.
	c.signal(learner, syscall.SIGSTOP)
	<-time.After(c.electionTimeout)
	c.signal(learner, syscall.SIGCONT)
	c.awaitWrite(stays)
	c.alive()

	reference := c.list(c.members[0])
	if len(reference) != 2 {
		t.Errorf("the members are %v, want two", reference)
	}
	for _, m := range c.members {
		for i, each := range c.list(m) {
			if i >= len(reference) || each.String() != reference[i].String() {
				t.Errorf("%s lists %v, %s lists %v", m.name, each, c.members[0].name, reference)
			}
		}
	}
	verify(t, c, l.stop())
}

// learnerAnswers waits for a serializable read of a learner, which refuses
// everything else.
func (c *cluster) learnerAnswers(m *member) {
	c.t.Helper()
	kv := pb.NewKVClient(c.dialOnce(m))
	read := func(r *pb.RangeRequest) error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_, err := kv.Range(ctx, r)
		return err
	}
	eventually(c.t, m.name+" answers a serializable read", func() error {
		return read(&pb.RangeRequest{Key: []byte("probe"), Serializable: true})
	})
	if err := read(&pb.RangeRequest{Key: []byte("probe")}); status.Convert(err).Message() != rpctypes.ErrorDesc(rpctypes.ErrGRPCNotSupportedForLearner) {
		c.t.Errorf("a learner answers a linearizable read: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	answer, err := pb.NewMaintenanceClient(c.dialOnce(m)).Status(ctx, &pb.StatusRequest{})
	if err != nil || !answer.GetIsLearner() {
		c.t.Errorf("the status of a learner: %v, %v", answer, err)
	}
}
