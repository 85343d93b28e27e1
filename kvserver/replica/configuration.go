package replica

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"muster/kvserver/machine"
)

const (
	voterRole   = "voter"
	learnerRole = "learner"
)

// place is what raft's configuration says of a member besides its id and its
// suffrage, so that a configuration entry is all that a member list needs. It
// takes the form of raft's server address: the role that clients see, then the
// peer URLs, with blanks in between.
//
// The role is voter, and the suffrage raft's Nonvoter, for a voter that was
// added and has not caught up yet: it is no burden for the quorum before.
type place struct {
	learner  bool
	peerURLs []string
}

func (p place) address() raft.ServerAddress {
	role := voterRole
	if p.learner {
		role = learnerRole
	}
	return raft.ServerAddress(role + " " + strings.Join(p.peerURLs, " "))
}

func placeOf(address raft.ServerAddress) (place, error) {
	fields := strings.Fields(string(address))
	if len(fields) < 2 || fields[0] != voterRole && fields[0] != learnerRole {
		return place{}, fmt.Errorf("raft server address %q is not a role with peer URLs", address)
	}
	return place{learner: fields[0] == learnerRole, peerURLs: fields[1:]}, nil
}

// waitsToVote tells whether the member is to vote once it has caught up.
func waitsToVote(server raft.Server) bool {
	at, err := placeOf(server.Address)
	return err == nil && !at.learner && server.Suffrage != raft.Voter
}

// membersOf is the member list that a configuration stands for.
func membersOf(configuration raft.Configuration) ([]machine.Member, error) {
	var members []machine.Member
	for _, server := range configuration.Servers {
		id, err := memberID(server.ID)
		if err != nil {
			return nil, err
		}
		at, err := placeOf(server.Address)
		if err != nil {
			return nil, err
		}
		members = append(members, machine.Member{ID: id, PeerURLs: at.peerURLs, Learner: at.learner})
	}
	return members, nil
}

// serverID is a member's id as raft knows it.
func serverID(member uint64) raft.ServerID {
	return raft.ServerID(strconv.FormatUint(member, 16))
}

func memberID(server raft.ServerID) (uint64, error) {
	id, err := strconv.ParseUint(string(server), 16, 64)
	if err != nil {
		return 0, fmt.Errorf("raft server id %q is not a member id: %w", server, err)
	}
	return id, nil
}

// route is what raft's transport dials: a member's id before its address, so
// that nothing has to be looked up, not even for a member that is being
// removed.
func route(id raft.ServerID, address raft.ServerAddress) raft.ServerAddress {
	return raft.ServerAddress(id) + " " + address
}

func parseRoute(target raft.ServerAddress) (uint64, place, error) {
	id, address, _ := strings.Cut(string(target), " ")
	member, err := memberID(raft.ServerID(id))
	if err != nil {
		return 0, place{}, err
	}
	at, err := placeOf(raft.ServerAddress(address))
	return member, at, err
}

// dialInTurn tries the peer URLs one after the other, each with its share of
// the time.
func dialInTurn(ctx context.Context, peerURLs []string, dial func(ctx context.Context, address string) (net.Conn, error)) (net.Conn, error) {
	var errs []error
	for i, peerURL := range peerURLs {
		attempt, cancel := ctx, context.CancelFunc(func() {})
		if deadline, bounded := ctx.Deadline(); bounded {
			attempt, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(peerURLs)-i))
		}
		conn, err := dial(attempt, hostPortOf(peerURL))
		cancel()
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// find returns the server with the member's id.
func find(servers []raft.Server, member uint64) (raft.Server, bool) {
	i := slices.IndexFunc(servers, func(s raft.Server) bool { return s.ID == serverID(member) })
	if i < 0 {
		return raft.Server{}, false
	}
	return servers[i], true
}
